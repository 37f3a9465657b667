"""A gRPC server in front of the embedded SpiceDB library: TLS, a preshared key, bytes in and bytes out.

Unary calls go to the library, streaming ones to the Unix socket that it opens. Development and CI only.
"""

import argparse
import asyncio
import ctypes
import hmac
import json
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_ulonglong, c_void_p
from pathlib import Path
from typing import Any, TypeAlias

import grpc

PERMISSIONS = "authzed.api.v1.PermissionsService"
UNARY = {
    f"/{PERMISSIONS}/CheckPermission": "spicedb_permissions_check_permission",
    f"/{PERMISSIONS}/CheckBulkPermissions": "spicedb_permissions_check_bulk_permissions",
    f"/{PERMISSIONS}/WriteRelationships": "spicedb_permissions_write_relationships",
    f"/{PERMISSIONS}/DeleteRelationships": "spicedb_permissions_delete_relationships",
    f"/{PERMISSIONS}/ExpandPermissionTree": "spicedb_permissions_expand_permission_tree",
    "/authzed.api.v1.SchemaService/WriteSchema": "spicedb_schema_write_schema",
    "/authzed.api.v1.SchemaService/ReadSchema": "spicedb_schema_read_schema",
}
STREAMS = {
    f"/{PERMISSIONS}/ReadRelationships",
    f"/{PERMISSIONS}/LookupResources",
    f"/{PERMISSIONS}/LookupSubjects",
    "/authzed.api.v1.WatchService/Watch",
}
CODE = re.compile(r"rpc error: code = (\w+)")

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class LibraryError(Exception):
    """The library refused a call."""


def code_of(message: str) -> grpc.StatusCode:
    """Return the code that SpiceDB refused with; the library keeps it in its message alone."""
    found = CODE.search(message)
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", found[1]).upper() if found else ""
    return grpc.StatusCode[name] if name in grpc.StatusCode.__members__ else grpc.StatusCode.UNKNOWN


class Library:
    """libspicedb.so by ctypes: every call takes a handle and bytes, and hands back bytes or a message."""

    def __init__(self, path: Path) -> None:
        self._lib = ctypes.CDLL(str(path))
        self._lib.spicedb_start.restype = POINTER(c_char)
        self._lib.spicedb_start.argtypes = [c_char_p]
        self._lib.spicedb_free.argtypes = [c_void_p]
        self._lib.spicedb_free_bytes.argtypes = [c_void_p]
        for name in UNARY.values():
            function = getattr(self._lib, name)
            function.restype = None
            function.argtypes = [c_ulonglong, c_char_p, c_int, POINTER(c_void_p), POINTER(c_int), POINTER(c_void_p)]
        started = self._lib.spicedb_start(json.dumps({"datastore": "memory", "grpc_transport": "memory"}).encode())
        answer = json.loads(ctypes.string_at(started))
        if not answer.get("success"):
            raise LibraryError(answer.get("error", "the library did not start"))
        self._handle = c_ulonglong(answer["data"]["handle"])
        self.streaming = "unix://" + answer["data"]["streaming_address"]

    def call(self, name: str, request: bytes) -> bytes:
        """Call one function; raises LibraryError with its message."""
        answer, length, error = c_void_p(), c_int(), c_void_p()
        getattr(self._lib, name)(self._handle, request, len(request), byref(answer), byref(length), byref(error))
        if error.value:
            message = ctypes.string_at(error.value).decode(errors="replace")
            self._lib.spicedb_free(error)
            raise LibraryError(message)
        if not answer.value:
            return b""
        content = ctypes.string_at(answer.value, length.value)
        self._lib.spicedb_free_bytes(answer)
        return content


class Handlers(grpc.GenericRpcHandler):
    """Serves what the library can, to callers with the key."""

    def __init__(self, library: Library, preshared: Path) -> None:
        self._library = library
        self._preshared = preshared
        self._readers = ThreadPoolExecutor(8)
        # The library's memory store files writes that meet out of order, and then answers without the later one.
        self._writer = ThreadPoolExecutor(1)
        self._streams = grpc.aio.insecure_channel(library.streaming)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Return the handler of a method, or nothing for one that is not served."""
        method = handler_call_details.method
        if method in UNARY:

            async def unary(request: bytes, rpc: Context) -> bytes:
                await self._authenticate(rpc)
                loop = asyncio.get_running_loop()
                threads = self._writer if "Write" in method or "Delete" in method else self._readers
                try:
                    return await loop.run_in_executor(threads, self._library.call, UNARY[method], request)
                except LibraryError as error:
                    await rpc.abort(code_of(str(error)), str(error))
                    raise

            return grpc.unary_unary_rpc_method_handler(unary)
        if method in STREAMS:

            async def stream(request: bytes, rpc: Context) -> AsyncIterator[bytes]:
                await self._authenticate(rpc)
                method_of_library: Any = self._streams.unary_stream(method)
                call = method_of_library(request)
                try:
                    async for answer in call:
                        yield answer
                except grpc.aio.AioRpcError as error:
                    await rpc.abort(error.code(), error.details() or "")
                finally:
                    call.cancel()

            return grpc.unary_stream_rpc_method_handler(stream)
        return None

    async def _authenticate(self, rpc: Context) -> None:
        metadata: dict[str, Any] = dict(rpc.invocation_metadata() or ())
        shown = str(metadata.get("authorization", "")).encode()
        # As SpiceDB, it takes several, so that one can replace another while both are in use.
        keys = self._preshared.read_bytes().split(b",")
        if not any(hmac.compare_digest(shown, b"Bearer " + key) for key in keys):
            await rpc.abort(grpc.StatusCode.UNAUTHENTICATED, "the preshared key is wrong")


async def main() -> None:
    """Serve until the process ends."""
    parser = argparse.ArgumentParser()
    for name in ("library", "certificate", "key", "preshared"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--listen", required=True)
    arguments = parser.parse_args()
    server = grpc.aio.server()
    handlers = Handlers(Library(arguments.library), arguments.preshared)
    server.add_generic_rpc_handlers((handlers,))
    pair = (arguments.key.read_bytes(), arguments.certificate.read_bytes())
    server.add_secure_port(arguments.listen, grpc.ssl_server_credentials([pair]))
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
