"""The methods that ADEPT is compared with, and the comparison."""
