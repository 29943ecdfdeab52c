# SPDX-License-Identifier: Apache-2.0
"""The types that the parts of Oumi exchange. Imports no torch."""

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
