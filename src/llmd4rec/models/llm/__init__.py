"""The language model as a recommender: where it comes from, what it reads of items, how it ranks them."""
