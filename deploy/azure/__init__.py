"""Templates for Azure, and what is generated for them from the table of rights."""
