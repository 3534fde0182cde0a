"""Which of two models is faster, and is that certain?"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from secateur.artefact import load
from secateur.cli.job import read_job
from secateur.cli.models import Subject, load_model
from secateur.cli.output import JOB
from secateur.errors import JobError
from secateur.report.quantity import TIMES, measured, quantity
from secateur.targets import Measurement, Ratio, measure, ratio_of_medians
