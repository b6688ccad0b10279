"""Serves a plugin by go-plugin's protocol."""

import concurrent.futures
import os
import sys
import tempfile
import threading
import traceback

import grpc

from . import plugin_pb2 as pb
from . import texts

VERSION = 1
MAX_REPLY = 4 << 20  # the greatest answer in bytes
MAX_REQUEST = 64 << 20
THREADS = 1024  # calls at one time; there are as many as the configuration's "concurrency" asks for
STACK = 2 << 20  # bytes of a thread's stack, which counts against "memory"


def _answered(call):
    """A call whose exceptions are errors of that call alone."""
    def answer(request, context):
        try:
            return call(request, context)
        except Exception as e:
            traceback.print_exc()
            context.abort(grpc.StatusCode.INTERNAL, texts.line("%s: %s" % (e.__class__.__name__, e)))
    return answer


def serve(plugin):
    """Speaks go-plugin's protocol until Postern ends it."""
    options = [("grpc.max_receive_message_length", MAX_REQUEST), ("grpc.max_send_message_length", MAX_REPLY), ("grpc.so_reuseport", 0)]
    threading.stack_size(STACK)
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=THREADS), options=options)
    ended = threading.Event()

    def unary(call, request, reply):
        return grpc.unary_unary_rpc_method_handler(_answered(call), request_deserializer=request.FromString, response_serializer=reply.SerializeToString)

    def plain(call):
        return grpc.unary_unary_rpc_method_handler(call, request_deserializer=lambda b: b, response_serializer=lambda b: b)

    def shutdown(_request, _context):
        ended.set()
        return b""

    server.add_generic_rpc_handlers((
        grpc.method_handlers_generic_handler("postern.plugin.v1.Plugin", {
            "Declare": unary(plugin.declare, pb.DeclareRequest, pb.Declaration),
            "Configure": unary(plugin.call_configure, pb.ConfigureRequest, pb.ConfigureReply),
            "Judge": unary(plugin.call_judge, pb.JudgeRequest, pb.JudgeReply),
            "Forget": unary(plugin.call_forget, pb.ForgetRequest, pb.ForgetReply)}),
        # SERVING, as a HealthCheckResponse has it.
        grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": plain(lambda _request, _context: b"\x08\x01")}),
        grpc.method_handlers_generic_handler("plugin.GRPCController", {"Shutdown": plain(shutdown)})))
    path = _listen(server)
    server.start()
    sys.stdout.write("1|%d|unix|%s|grpc\n" % (VERSION, path))
    sys.stdout.flush()
    sys.stdout = sys.stderr
    parent = os.getppid()
    while not ended.wait(2) and os.getppid() == parent:
        pass
    server.stop(grace=1).wait()
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    # Whatever still runs in a thread is for a call that nobody waits for.
    sys.stderr.flush()
    os._exit(0)


def _listen(server):
    """A socket in the directory, and of the group, that Postern names."""
    place = os.environ.get("PLUGIN_UNIX_SOCKET_DIR") or tempfile.mkdtemp(prefix="plugin")
    path = os.path.join(place, "plugin" + os.urandom(4).hex())
    server.add_insecure_port("unix:" + path)
    group = os.environ.get("PLUGIN_UNIX_SOCKET_GROUP")
    if group:
        os.chown(path, -1, int(group))
        os.chmod(path, 0o660)
    return path
