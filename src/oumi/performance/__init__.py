# SPDX-License-Identifier: Apache-2.0
"""Import paths that Oumi documents."""
