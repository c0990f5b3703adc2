"""Ten ways to say each task.

Training draws among them, so that a model learns the task and not one sentence; all else takes the
first. SWIRL (arXiv 2602.06130) trains so, with wordings of its own.
"""

FDP_WORDINGS = (
    "Change this picture as the sentence says:",
    "Show what the picture looks like after this action:",
    "Redraw the picture so that the following has happened:",
    "Carry out this action in the picture:",
    "Edit the picture by this instruction:",
    "Draw the next picture, after this change:",
    "Make the picture agree with this sentence:",
    "Let this happen to what the picture shows:",
    "Take the picture and do the following:",
    "Apply this change and nothing else:",
)

IDM_WORDINGS = (
    "Which action turns the first picture into the second? Answer in a few words.",
    "The two pictures follow each other. Name briefly what happened in between.",
    "Say in one short sentence what was done between the first picture and the second.",
    "Compare the pictures and name the action that most likely led from one to the other.",
    "Look at both pictures in order. What changed, and by which action? Be brief.",
    "Describe the step from the first picture to the next as a short instruction.",
    "Find the action that explains the difference, and put it into a few words.",
    "Before and after: tell the most probable action in plain, short words.",
    "What has to be done to the first picture to get the second? Keep it short.",
    "State concisely the action that happened between these two moments.",
)
