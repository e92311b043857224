"""What a worker says of itself: lines of log, and numbers."""
