"""What one worker runs: stage 1, stage 2, scoring, the state that a resume needs."""
