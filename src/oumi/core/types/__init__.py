# SPDX-License-Identifier: Apache-2.0
"""What passes between the parts."""

from oumi.core.types.conversation import (
    ContentItem,
    Conversation,
    FunctionCall,
    Message,
    Role,
    ToolCall,
    ToolDefinition,
    Type,
)

__all__ = ["ContentItem", "Conversation", "FunctionCall", "Message", "Role", "ToolCall", "ToolDefinition", "Type"]
