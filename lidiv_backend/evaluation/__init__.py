"""Measuring methods in clicks: protocols, data sets, classical baselines, reports."""
