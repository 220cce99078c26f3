"""Dali: denoising diffusion probabilistic models (arXiv 2006.11239), from noise schedules to pictures."""

from axon_ddpm.dali import Dali
from axon_ddpm.denoiser import Denoiser
from axon_ddpm.diffusion import Diffusion, Prediction
from axon_ddpm.process import Process, spaced
from axon_ddpm.samplers import SAMPLERS, Frame, Sampler
from axon_ddpm.schedule import NOISE_SCHEDULES, NoiseSchedule
from axon_ddpm.trainer import DDPMTrainer
from axon_ddpm.unet import UNet

__all__ = [
    "NOISE_SCHEDULES",
    "SAMPLERS",
    "DDPMTrainer",
    "Dali",
    "Denoiser",
    "Diffusion",
    "Frame",
    "NoiseSchedule",
    "Prediction",
    "Process",
    "Sampler",
    "UNet",
    "spaced",
]
