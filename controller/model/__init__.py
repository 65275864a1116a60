"""The nouns of the fabric and the state that they make up. Pure: no input, no output."""
