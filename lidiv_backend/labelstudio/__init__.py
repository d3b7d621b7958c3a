"""What Label Studio sends, and what it accepts: the only place that knows its protocol."""
