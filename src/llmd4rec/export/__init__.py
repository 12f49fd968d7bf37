"""A trained model as a folder that serves without PyTorch."""
