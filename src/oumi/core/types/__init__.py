# SPDX-License-Identifier: Apache-2.0
"""What passes between the parts."""

from oumi.core.types.conversation import Conversation, Message, Role

__all__ = ["Conversation", "Message", "Role"]
