# SPDX-License-Identifier: Apache-2.0
from sky.exceptions import InvalidClusterNameError


def check_cluster_name_is_valid(cluster_name):
    if cluster_name is not None and " " in cluster_name:
        raise InvalidClusterNameError(cluster_name)
