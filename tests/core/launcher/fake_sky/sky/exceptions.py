# SPDX-License-Identifier: Apache-2.0
class ClusterDoesNotExist(ValueError):  # noqa: N818
    pass


class ClusterNotUpError(Exception):
    pass


class InvalidClusterNameError(Exception):
    pass


class NotSupportedError(Exception):
    pass


class StorageError(Exception):
    pass
