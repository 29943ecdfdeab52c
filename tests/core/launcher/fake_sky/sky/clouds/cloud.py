# SPDX-License-Identifier: Apache-2.0
from enum import Enum


class CloudCapability(Enum):
    COMPUTE = "compute"
    STORAGE = "storage"


class CloudImplementationFeatures(Enum):
    SPOT_INSTANCE = "spot_instance"
    CUSTOM_DISK_TIER = "custom_disk_tier"
    DOCKER_IMAGE = "docker_image"
    IMAGE_ID = "image_id"
    MULTI_NODE = "multi-node"
    STORAGE_MOUNTING = "storage_mounting"
