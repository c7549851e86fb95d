"""What files of scans hold, before they are prepared."""
