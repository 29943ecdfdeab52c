# SPDX-License-Identifier: Apache-2.0
"""The former import path of `oumi.core.data.tokenize.images`, kept for programs that use it."""

from oumi.core.data.tokenize.images import load_image as load_picture  # noqa: F401
