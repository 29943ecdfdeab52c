# SPDX-License-Identifier: Apache-2.0
"""What ships inside the package: the files of a tiny model, without weights."""
