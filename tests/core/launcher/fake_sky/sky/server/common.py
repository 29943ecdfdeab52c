# SPDX-License-Identifier: Apache-2.0
import os


def is_api_server_local():
    return "FAKE_SKY_SERVER" not in os.environ


def get_server_url():
    return os.environ["FAKE_SKY_SERVER"]
