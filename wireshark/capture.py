"""Captures of TCP connections, written byte by byte: no socket, no privilege, the same file each time."""

import struct

DIALER, LISTENER = "10.0.0.1", "10.0.0.2"


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def address(text):
    return bytes(int(part) for part in text.split("."))


class Capture:
    """Packets in the order in which they were seen. The number of a packet, from 1, is Wireshark's frame number."""

    def __init__(self):
        self.packets = []
        self.connections = 0
        # The bytes of a packet that are kept; it says that it was longer.
        self.longest = 1 << 18

    def connect(self, port=4000, from_port=None):
        self.connections += 1
        return Connection(self, from_port or 40000 + self.connections, port, self.connections * 1_000_000)

    def add(self, source, source_port, to, to_port, sequence, acknowledged, flags, data):
        pseudo = address(source) + address(to) + struct.pack("!HH", 6, 20 + len(data))
        head = struct.pack("!HHIIBB", source_port, to_port, sequence, acknowledged, 5 << 4, flags)
        tail = struct.pack("!HHH", 65535, 0, 0)
        tcp = head + struct.pack("!HHH", 65535, checksum(pseudo + head + tail + data), 0) + data
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), len(self.packets) & 0xFFFF, 0x4000, 64, 6, 0)
        ip += address(source) + address(to)
        self.packets.append(ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:] + tcp)
        return len(self.packets)

    def write(self, path):
        raw_ip = 101
        with open(path, "wb") as file:
            file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, raw_ip))
            for number, packet in enumerate(self.packets):
                kept = packet[:self.longest]
                file.write(struct.pack("<IIII", 1_700_000_000 + number // 1000, number % 1000 * 1000, len(kept), len(packet)))
                file.write(kept)


class Connection:
    """One TCP connection. Both ends begin with this sequence number, for their SYN."""

    SYN, RST, PSH_ACK, ACK, FIN_ACK = 0x02, 0x04, 0x18, 0x10, 0x11

    def __init__(self, capture, from_port, port, sequence):
        self.capture = capture
        self.ends = {DIALER: from_port, LISTENER: port}
        self.sent = {DIALER: sequence + 1, LISTENER: sequence + 1}
        self.last = {}
        capture.add(DIALER, from_port, LISTENER, port, sequence, 0, self.SYN, b"")
        capture.add(LISTENER, port, DIALER, from_port, sequence, sequence + 1, self.SYN | self.ACK, b"")
        self.packet(DIALER, self.ACK)

    def packet(self, end, flags, data=b"", sequence=None):
        other = LISTENER if end == DIALER else DIALER
        sequence = self.sent[end] if sequence is None else sequence
        return self.capture.add(end, self.ends[end], other, self.ends[other], sequence, self.sent[other], flags, data)

    def segment(self, end, data):
        """Sends data in one segment; returns the number of its packet."""
        self.last[end] = (self.sent[end], data)
        number = self.packet(end, self.PSH_ACK, data)
        self.sent[end] += len(data)
        return number

    def segments(self, end, data, cuts):
        """Sends data, cut at these offsets; returns the offset at which each segment ends, with the number of its packet."""
        bounds = [0, *cuts, len(data)]
        return [(end_at, self.segment(end, data[start:end_at])) for start, end_at in zip(bounds, bounds[1:]) if start < end_at]

    def retransmit(self, end, more=b""):
        """Sends the last segment of this end once more, with more behind it; returns the number of its packet."""
        sequence, data = self.last[end]
        self.last[end] = (sequence, data + more)
        self.sent[end] += len(more)
        return self.packet(end, self.PSH_ACK, data + more, sequence)

    def disordered(self, end, data, cuts, order):
        """Sends data, cut at these offsets, its segments in this order; returns the numbers of their packets in that order."""
        bounds = [0, *cuts, len(data)]
        first = self.sent[end]
        self.sent[end] += len(data)
        return [self.packet(end, self.PSH_ACK, data[bounds[i]:bounds[i + 1]], first + bounds[i]) for i in order]

    def reset(self, end):
        self.packet(end, self.RST)

    def close(self):
        for end in (DIALER, LISTENER):
            self.packet(end, self.FIN_ACK)
            self.sent[end] += 1
