# SPDX-License-Identifier: Apache-2.0
class CLOUD_REGISTRY:  # noqa: N801
    @staticmethod
    def from_str(name):
        from sky import Cloud

        return Cloud(name)
