"""A Kubo node driven by lines of JSON on stdin; answers are lines of JSON on stdout.

usage: kubo.py LIBRARY REPO

The library is Kubo built as a shared object. The node listens on free loopback ports over TCP and QUIC, knows no
bootstrap peers and looks for none. It prints {"version", "peer", "addresses"} first, then answers {"add": PATH}, {"get": CID, "to":
PATH}, {"connect": ADDRESS} and {"peers": true} with {"ok": RESULT} or {"error": TEXT}. End of input ends it.
"""

import ctypes
import json
import mmap
import os
import re
import socket
import sys


def free_port(kind):
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def configure(repo):
    path = os.path.join(repo, "config")
    with open(path) as file:
        config = json.load(file)
    config["Bootstrap"] = []
    config["Addresses"].update(
        Swarm=[
            f"/ip4/127.0.0.1/tcp/{free_port(socket.SOCK_STREAM)}",
            f"/ip4/127.0.0.1/udp/{free_port(socket.SOCK_DGRAM)}/quic-v1",
        ],
        API=[],
        Gateway=[],
        AppendAnnounce=[],
        NoAnnounce=[],
    )
    config["Discovery"] = {"MDNS": {"Enabled": False}}
    config["Routing"] = {"Type": "dht", "AcceleratedDHTClient": False}
    config["AutoNAT"] = {"ServiceMode": "disabled"}
    swarm = config.setdefault("Swarm", {})
    swarm.update(AddrFilters=[], DisableNatPortMap=True, RelayClient={"Enabled": False})
    with open(path, "w") as file:
        json.dump(config, file)


def version(library):
    """Kubo's version, from the build information that Go puts into every program."""
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as bytes_:
        found = re.search(rb"dep\tgithub.com/ipfs/kubo\tv([0-9.]+)", bytes_)
        return found.group(1).decode() if found else "of unknown version"


class Kubo:
    def __init__(self, library, repo):
        self.lib = ctypes.CDLL(os.path.abspath(library))
        # It writes its log into the working directory.
        os.chdir(repo)
        for name in ("AddFile", "GetNodeID", "GetNodeMultiAddrs", "ListPeers"):
            getattr(self.lib, name).restype = ctypes.c_char_p
        self.repo = repo.encode()
        self.check(self.lib.CreateRepo(self.repo), "create the repo")
        configure(repo)
        self.check(self.lib.RunNode(self.repo), "run the node")

    @staticmethod
    def check(code, what):
        if code < 0:
            raise RuntimeError(f"cannot {what}: {code}")
        return code

    def peer(self):
        return self.lib.GetNodeID(self.repo).decode().removeprefix("ID:")

    def addresses(self):
        return json.loads(self.lib.GetNodeMultiAddrs(self.repo))

    def answer(self, request):
        if "add" in request:
            cid = self.lib.AddFile(self.repo, request["add"].encode(), False)
            if not cid:
                raise RuntimeError("nothing added")
            return cid.decode()
        if "get" in request:
            return self.check(
                self.lib.Download(self.repo, request["get"].encode(), request["to"].encode()), "get"
            )
        if "connect" in request:
            return self.check(self.lib.ConnectToPeer(self.repo, request["connect"].encode()), "connect")
        return json.loads(self.lib.ListPeers(self.repo) or b"[]")


def main():
    # The library prints to stdout; the answers get a stream of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(line):
        print(json.dumps(line), file=answers, flush=True)

    kubo = Kubo(sys.argv[1], sys.argv[2])
    say({"version": version(sys.argv[1]), "peer": kubo.peer(), "addresses": kubo.addresses()})
    for line in sys.stdin:
        try:
            say({"ok": kubo.answer(json.loads(line))})
        except Exception as error:  # told to the test, which decides
            say({"error": str(error)})
    kubo.lib.CleanupNode(kubo.repo)


main()
