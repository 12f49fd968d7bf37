"""What is known of items beside their identifiers: attributes, words, co-occurrence."""
