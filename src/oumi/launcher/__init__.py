# SPDX-License-Identifier: Apache-2.0
"""An import path that Oumi documents: the description of a job. Starting one is not built yet."""

from oumi.core.configs import JobConfig, JobResources, StorageMount

__all__ = ["JobConfig", "JobResources", "StorageMount"]
