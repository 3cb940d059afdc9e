"""One run: from the records of a partition to the fate of each message, in one transaction."""
