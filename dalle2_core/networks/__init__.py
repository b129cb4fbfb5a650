"""Networks: functions of tensors that know nothing of diffusion."""
