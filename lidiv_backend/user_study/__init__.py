"""The user study of the paper's Section 5.2, for a lab: who needs how many clicks with what."""
