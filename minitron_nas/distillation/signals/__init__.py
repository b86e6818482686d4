"""What a teacher says: the teacher itself beside the student, or a cache of what it said."""
