"""What an operator does: one room for each command, over the same rooms that ship."""
