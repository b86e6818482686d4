"""The plan and the stages that turn a teacher into a family."""
