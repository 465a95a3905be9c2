"""libtorrent, driven by arguments; answers are lines of JSON on stdout.

usage: torrents.py make FILE_OR_FOLDER TORRENT PIECE_LENGTH [hybrid]
       torrents.py describe TORRENT
       torrents.py seed TORRENT FOLDER
       torrents.py get TORRENT_OR_MAGNET FOLDER IP:PORT...

`make` writes a v1 or hybrid torrent and prints {"infohash", "infohash_v2"}; `describe` prints these and {"files"}: path,
size and whether it is a pad or link. `seed` checks FOLDER, prints {"address"} and seeds until its input
ends. `get` downloads from the given peers and prints {"seconds", "cpu", "infohash", "infohash_v2"}: from the moment the metadata is
here to the last piece, and what that cost this process. Both print {"error"} and fail where libtorrent does. Only TCP
on loopback; no DHT, no trackers, no discovery. PYTHONPATH names the folder that libtorrent is installed in.
"""

import json
import os
import sys
import time

import libtorrent as lt

# Seconds without a byte after which a download has failed.
STALLED = 60


def say(**line):
    print(json.dumps(line), flush=True)


def fail(text):
    say(error=text)
    sys.exit(1)


def session():
    settings = {
        "listen_interfaces": "127.0.0.1:0",
        "alert_mask": lt.alert.category_t.status_notification
        | lt.alert.category_t.error_notification
        | lt.alert.category_t.connect_notification,
        "min_reconnect_time": 1,
        "allow_multiple_connections_per_ip": True,
        # Plain TCP alone: what is measured is the peer wire, not uTP's congestion control or RC4.
        "enable_outgoing_utp": False,
        "enable_incoming_utp": False,
        "out_enc_policy": int(lt.enc_policy.pe_disabled),
        "in_enc_policy": int(lt.enc_policy.pe_disabled),
    }
    for name in ("enable_dht", "enable_lsd", "enable_upnp", "enable_natpmp"):
        settings[name] = False
    return lt.session(settings)


def failure(ses, handle):
    """Why the torrent stopped, if it did."""
    status = handle.status()
    if status.errc.value() != 0:
        return f"{status.errc.message()} ({handle.torrent_file() and status.name})"
    return None


def parameters(reference, folder):
    if reference.startswith("magnet:"):
        params = lt.parse_magnet_uri(reference)
    else:
        params = lt.add_torrent_params()
        params.ti = lt.torrent_info(reference)
    params.save_path = folder
    params.flags &= ~lt.torrent_flags.auto_managed
    params.flags &= ~lt.torrent_flags.paused
    return params


def hashes(found):
    v2 = str(found.v2) if found.has_v2() else None
    return {"infohash": str(found.v1) if found.has_v1() else None, "infohash_v2": v2}


def make(source, target, piece_length, kind="v1"):
    create = lt.create_torrent
    # Pads come before files, as BEP 47 has it, and not behind the last one.
    flags = create.canonical_files_no_tail_padding if kind == "hybrid" else create.v1_only
    torrent = create(lt.list_files(source), int(piece_length), flags)
    lt.set_piece_hashes(torrent, os.path.dirname(os.path.abspath(source)))
    with open(target, "wb") as file:
        file.write(lt.bencode(torrent.generate()))
    say(**hashes(lt.torrent_info(target).info_hashes()))


def describe(torrent):
    info = lt.torrent_info(torrent)
    files, flags = info.files(), lt.file_flags_t
    say(
        **hashes(info.info_hashes()),
        files=[
            {
                "path": files.file_path(i),
                "size": files.file_size(i),
                "pad": bool(files.file_flags(i) & flags.flag_pad_file),
                "link": bool(files.file_flags(i) & flags.flag_symlink),
            }
            for i in range(files.num_files())
        ],
    )


def seed(reference, folder):
    ses = session()
    handle = ses.add_torrent(parameters(reference, folder))
    while not handle.status().is_seeding:
        if problem := failure(ses, handle):
            fail(problem)
        if handle.status().state == lt.torrent_status.downloading:
            fail(f"{folder} does not hold what {reference} describes")
        ses.wait_for_alert(100)
        ses.pop_alerts()
    say(address=f"127.0.0.1:{ses.listen_port()}")
    sys.stdin.read()


def get(reference, folder, *peers):
    ses = session()
    params = parameters(reference, folder)
    params.peers = [(peer.rsplit(":", 1)[0], int(peer.rsplit(":", 1)[1])) for peer in peers]
    handle = ses.add_torrent(params)
    begun = None
    seen, moved = 0, time.monotonic()
    while True:
        status = handle.status()
        if problem := failure(ses, handle):
            fail(problem)
        if begun is None and status.has_metadata:
            begun = (time.monotonic(), time.process_time())
        if status.is_seeding:
            break
        if status.total_download > seen:
            seen, moved = status.total_download, time.monotonic()
        elif time.monotonic() - moved > STALLED:
            fail(f"nothing came for {STALLED} s from {', '.join(peers)}; {status.total_done} bytes are here")
        ses.wait_for_alert(50)
        for alert in ses.pop_alerts():
            print(alert.message(), file=sys.stderr)
    say(
        seconds=time.monotonic() - begun[0],
        cpu=time.process_time() - begun[1],
        **hashes(status.info_hashes),
    )


{"make": make, "describe": describe, "seed": seed, "get": get}[sys.argv[1]](*sys.argv[2:])
