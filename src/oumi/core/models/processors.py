# SPDX-License-Identifier: Apache-2.0
"""The former import path of `oumi.core.data.tokenize.processor`, kept for programs that use it."""

from oumi.core.data.tokenize.processor import WithoutVideos  # noqa: F401
