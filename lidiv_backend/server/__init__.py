"""The Flask application that Label Studio talks to."""
