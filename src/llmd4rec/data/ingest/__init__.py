"""Raw logs and catalogues of any shape in, a checked data set out."""
