"""The command minitron-nas: one verb per public function."""
