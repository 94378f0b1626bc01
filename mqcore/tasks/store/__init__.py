"""Where tasks are stored: the seam that a store implements, and the store in memory."""
