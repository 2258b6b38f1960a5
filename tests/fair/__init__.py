"""What one client that floods costs the others: how long from their append to a consumer."""
