# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning on one NVIDIA GPU: Oumi beside its peers, on the same rows and weights."""
