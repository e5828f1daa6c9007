"""Text to hidden states to store, in one process on one device. Knows nothing of Ray and nothing of analysis."""
