# SPDX-License-Identifier: Apache-2.0
"""The former import path of `oumi.core.data.records.images`, kept for programs that use it."""

from oumi.core.data.records.images import image_item as picture  # noqa: F401
