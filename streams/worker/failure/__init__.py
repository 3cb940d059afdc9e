"""What a failure means: whose fault it is, and how the guilty message is found."""
