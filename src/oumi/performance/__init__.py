# SPDX-License-Identifier: Apache-2.0
"""Documented import paths of Oumi."""
