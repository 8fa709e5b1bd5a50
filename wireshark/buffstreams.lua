-- A Wireshark dissector for length-prefixed messages over TCP, as the library buffstreams writes them.
--
-- It takes messages out of the stream in any of the library's formats, and knows acknowledged sessions by their handshake
-- (docs/session-protocol.md). How to install and set it up is in README.md, beside this file.
--
-- The order of this file: settings, fields, reading a length (`codecs`), what is remembered of a connection (`flows`), plain
-- messages, sessions, and the dissector itself.
--
-- It is for the Lua 5.2 of Wireshark 4.0 and for the Lua 5.4 of later ones, so it has neither integers nor bit operators:
-- what may have more than 53 bits is a UInt64 of Wireshark's.

local proto = Proto("buffstreams", "Length-prefixed messages (buffstreams)")

local MAGIC = string.char(0xf5) .. "buffstreams"
local VERSION = 1
local HANDSHAKE = 88        -- bytes of a HELLO or WELCOME
local MAX_VARINT = 10       -- bytes of the longest varint of 64 bits
local ONE_MORE_SEGMENT = DESEGMENT_ONE_MORE_SEGMENT
local ZERO = UInt64(0)

---------------------------------------------------------------------------------------------------------------------------
-- Settings

-- In the order of the menu. `width`, `little` make a fixed format.
local FORMATS = {
    { name = "buffstreams", about = "buffstreams: zig-zag varint, padded to a width that the limit sets" },
    { name = "u8", about = "u8: 1 byte", width = 1 },
    { name = "u16_be", about = "u16_be: 2 bytes, big endian", width = 2 },
    { name = "u16_le", about = "u16_le: 2 bytes, little endian", width = 2, little = true },
    { name = "u24_be", about = "u24_be: 3 bytes, big endian", width = 3 },
    { name = "u32_be", about = "u32_be: 4 bytes, big endian", width = 4 },
    { name = "u32_le", about = "u32_le: 4 bytes, little endian", width = 4, little = true },
    { name = "u64_be", about = "u64_be: 8 bytes, big endian", width = 8 },
    { name = "varint", about = "varint: protobuf's own delimiter" },
    { name = "fixed", about = "fixed: as set below" },
    { name = "session", about = "session: frames of a session whose handshake is not in the capture" },
}

local HEURISTIC_OFF, HEURISTIC_SESSIONS, HEURISTIC_FRAMES = 0, 1, 2

local function menu_of_formats()
    local menu = {}
    for i, format in ipairs(FORMATS) do
        menu[i] = { format.name, format.about, i }
    end
    return menu
end

proto.prefs.ports = Pref.range("TCP ports", "", "Ports whose connections carry such messages, as in 4000,5000-5010", 65535)
proto.prefs.format = Pref.enum("Format", 1,
    "How the length is written. Both ends use the same; a session is known by its handshake whatever is set here",
    menu_of_formats(), false)
proto.prefs.max_message_size = Pref.uint("Longest message in bytes", 4096,
    "max_message_size of both ends, from 1. A longer message is an error; in the format buffstreams it sets the header's width")
proto.prefs.fixed_width = Pref.uint("Fixed: width of the length in bytes", 4, "From 1 to 8")
proto.prefs.fixed_offset = Pref.uint("Fixed: bytes in front of the length", 0, "From 0 to 8")
proto.prefs.fixed_little_endian = Pref.bool("Fixed: little endian", false, "The lowest byte of the length comes first")
proto.prefs.fixed_includes_header = Pref.bool("Fixed: length includes the header", false,
    "The length counts the header as well as the message")
proto.prefs.heuristic = Pref.enum("Look for it on other ports", HEURISTIC_SESSIONS,
    "Which connections are taken for these messages by their first bytes", {
        { "off", "off: only the ports above, and Decode As", HEURISTIC_OFF },
        { "sessions", "sessions: what starts with a handshake", HEURISTIC_SESSIONS },
        { "frames", "frames: also what reads well in the format above", HEURISTIC_FRAMES },
    }, false)
proto.prefs.protobuf = Pref.bool("Messages are Protocol Buffers", false, "Hand each message to Wireshark's protobuf dissector")
proto.prefs.protobuf_type = Pref.string("Protobuf: type of the messages", "",
    "As in mypackage.MyMessage, from a file in the search paths of the preferences of ProtoBuf; empty if it is not known")

---------------------------------------------------------------------------------------------------------------------------
-- Fields

local STATUS = {
    [0] = "NEW", [1] = "RESUMED", [2] = "UNKNOWN", [3] = "FENCED", [4] = "BUSY", [5] = "VERSION", [6] = "LIMITS", [7] = "DENIED",
}
local NEW, RESUMED, BUSY, STATUS_VERSION = 0, 1, 4, 5

local CONTROLS = { "ACK", "REFUSE", "HEARTBEAT", "CLOSE", "GOAWAY", "ERROR" }
local CONTROL_LENGTHS = { 9, 14, 17, 9, 7, 3 }
local ERRORS = { "GONE", "MALFORMED", "POSITION", "WINDOW", "TOO_LARGE", "SLOW", "EVICTED" }
local WHY = { [0] = "refused", [1] = "dropped" }

local f = {
    kind = ProtoField.string("buffstreams.kind", "Kind"),
    format = ProtoField.string("buffstreams.format", "Format"),
    header = ProtoField.bytes("buffstreams.header", "Header"),
    prefix = ProtoField.bytes("buffstreams.prefix", "In front of the length"),
    length = ProtoField.uint64("buffstreams.length", "Length", base.DEC),
    padding = ProtoField.bytes("buffstreams.padding", "Padding"),
    message = ProtoField.bytes("buffstreams.message", "Message"),
    position = ProtoField.uint64("buffstreams.position", "Position", base.DEC, nil, nil,
        "The number of this message in its session"),
    undecoded = ProtoField.bytes("buffstreams.undecoded", "Not decoded"),

    version = ProtoField.uint8("buffstreams.session.version", "Version", base.DEC),
    flags = ProtoField.uint8("buffstreams.session.flags", "Flags", base.HEX, { [0] = "none", [1] = "RESUME" }),
    status = ProtoField.uint8("buffstreams.session.status", "Status", base.DEC, STATUS),
    reserved = ProtoField.bytes("buffstreams.session.reserved", "Reserved"),
    id = ProtoField.bytes("buffstreams.session.id", "Session"),
    epoch = ProtoField.uint32("buffstreams.session.epoch", "Epoch", base.DEC),
    max_message = ProtoField.uint32("buffstreams.session.max_message", "Longest message accepted, in bytes", base.DEC),
    window = ProtoField.uint32("buffstreams.session.window", "Window, in bytes", base.DEC),
    heartbeat = ProtoField.uint32("buffstreams.session.heartbeat", "Heartbeat, in ms", base.DEC),
    ttl = ProtoField.uint32("buffstreams.session.ttl", "Kept without a connection, in ms", base.DEC),
    retry = ProtoField.uint32("buffstreams.session.retry", "Come again after, in ms", base.DEC),
    incarnation = ProtoField.uint32("buffstreams.session.incarnation", "Incarnation of the listener", base.HEX),
    acked = ProtoField.uint64("buffstreams.session.acked", "Acked", base.DEC, nil, nil,
        "All below are settled by the other end, and let go of"),
    sent = ProtoField.uint64("buffstreams.session.sent", "Sent", base.DEC, nil, nil,
        "One past the highest message that was sent"),
    received = ProtoField.uint64("buffstreams.session.received", "Received", base.DEC, nil, nil,
        "One past the last message that has come"),
    taken = ProtoField.uint64("buffstreams.session.taken", "Taken", base.DEC, nil, nil, "All below are settled"),

    control = ProtoField.uint8("buffstreams.control.type", "Type", base.DEC, CONTROLS),
    first = ProtoField.uint64("buffstreams.control.first", "First that is not taken", base.DEC),
    count = ProtoField.uint32("buffstreams.control.count", "How many", base.DEC),
    why = ProtoField.uint8("buffstreams.control.why", "Why", base.DEC, WHY),
    code = ProtoField.uint16("buffstreams.control.code", "Code", base.DEC, { [1] = "the listener closes" }),
    error = ProtoField.uint16("buffstreams.control.error", "Error", base.DEC, ERRORS),
}
for _, field in pairs(f) do
    proto.fields[#proto.fields + 1] = field
end

local function expert_error(name, text)
    return ProtoExpert.new("buffstreams.expert." .. name, text, expert.group.MALFORMED, expert.severity.ERROR)
end
local e = {
    setting = ProtoExpert.new("buffstreams.expert.setting", "A preference that cannot work", expert.group.DECRYPTION,
        expert.severity.ERROR),
    cut = ProtoExpert.new("buffstreams.expert.cut", "Not whole, and TCP may not put it together", expert.group.REASSEMBLE,
        expert.severity.WARN),
    not_protobuf = ProtoExpert.new("buffstreams.expert.not_protobuf", "Not a Protocol Buffer", expert.group.MALFORMED,
        expert.severity.WARN),
    too_large = expert_error("too_large", "Length over the limit"),
    negative = expert_error("negative", "Length below zero"),
    overlong = expert_error("overlong", "Varint longer than its value needs"),
    unterminated = expert_error("unterminated", "Varint without an end"),
    overflow = expert_error("overflow", "Varint of more than 64 bits"),
    padding = expert_error("padding", "Padding that is not zero"),
    below_header = expert_error("below_header", "Length below that of the header it includes"),
    malformed = expert_error("malformed", "MALFORMED"),
    version = expert_error("version", "VERSION"),
    limits = expert_error("limits", "LIMITS"),
    position = expert_error("position", "POSITION"),
}
for _, info in pairs(e) do
    proto.experts[#proto.experts + 1] = info
end

---------------------------------------------------------------------------------------------------------------------------
-- Reading a length
--
-- A codec reads the header at the start of a range of bytes. `read(bytes)` gives one of
--   { width, len, … }       a header of `width` bytes, and the length of its message as a number
--   { bad, text, width }    what is wrong with it, and how many bytes show that
--   nil                     the header is not whole
-- `shown` is the length as a UInt64, where it has one; `prefix` and `padding` are how many bytes of it are that.

local function bad(info, text, width, shown)
    return { bad = info, text = text, width = width, shown = shown }
end

local function too_large(shown, max, width)
    return bad(e.too_large, string.format("a message of %s bytes is announced: at most %d are allowed", tostring(shown), max),
        width, shown)
end

-- A varint of at most `longest` bytes: its width and its value; or nil, and what is wrong, if it is not that more is needed.
local function read_varint(bytes, longest)
    local value = UInt64(0)
    for i = 0, math.min(bytes:len(), longest) - 1 do
        local byte = bytes(i, 1):uint()
        local bits = byte % 0x80
        if i == MAX_VARINT - 1 and bits > 1 then
            return nil, bad(e.overflow, "the length is a varint of more than 64 bits", i + 1)
        end
        value = value:bor(UInt64(bits):lshift(7 * i))
        if byte < 0x80 then
            return i + 1, value
        end
    end
    if bytes:len() >= longest then
        return nil, bad(e.unterminated,
            string.format("the length is a varint that does not end within %d bytes", longest), longest)
    end
    return nil
end

-- Go's zig-zag varint, and zeros up to a width that the limit sets: a byte for each 8 bits of it, and one more.
local function buffstreams_codec(max)
    local width, power = 2, 0x100
    while power <= max do
        width, power = width + 1, power * 0x100
    end

    local function read(bytes)
        if bytes:len() < width then
            return nil
        end
        local varint, value = read_varint(bytes(0, width), width)
        if not varint then
            return value
        end
        if varint > 1 and bytes(varint - 1, 1):uint() == 0 then
            return bad(e.overlong,
                string.format("the length is a varint of %d bytes, longer than its value needs", varint), width)
        end
        for i = varint, width - 1 do
            local byte = bytes(i, 1):uint()
            if byte ~= 0 then
                return bad(e.padding,
                    string.format("byte %d of the header is padding and should be zero: it is 0x%02x", i, byte), width)
            end
        end
        -- With a limit of 32 bits the header has 5 bytes at most, so a number holds the value.
        local number = value:tonumber()
        if number % 2 == 1 then
            return bad(e.negative, string.format("a length of -%d is announced", (number + 1) / 2), width)
        end
        local shown = value:rshift(1)
        if number / 2 > max then
            return too_large(shown, max, width)
        end
        return { width = width, len = number / 2, shown = shown, padding = width - varint }
    end

    return { name = "buffstreams", max = max, bits = 8 * width, read = read }
end

-- An unsigned varint. One that is longer than it needs to be is fine: some writers reserve its place.
local function varint_codec(max)
    local function read(bytes)
        local width, value = read_varint(bytes, MAX_VARINT)
        if not width then
            return value
        end
        if value:tonumber() > max then
            return too_large(value, max, width)
        end
        return { width = width, len = value:tonumber(), shown = value }
    end

    return { name = "varint", max = max, bits = 8, read = read }
end

-- `fixed` has `name`, `width`, `offset`, `little`, `includes_header`.
local function fixed_codec(fixed, asked)
    local header = fixed.offset + fixed.width
    local counted = fixed.includes_header and header or 0
    local max = math.max(0, math.min(asked, 256 ^ fixed.width - 1 - counted))

    local function read(bytes)
        if bytes:len() < header then
            return nil
        end
        local field = bytes(fixed.offset, fixed.width)
        local written = fixed.little and field:le_uint64() or field:uint64()
        if written < UInt64(counted) then
            return bad(e.below_header, string.format(
                "a length of %s is announced, which should include the header's %d bytes", tostring(written), header), header)
        end
        local shown = written - UInt64(counted)
        if shown:tonumber() > max then
            return too_large(shown, max, header)
        end
        return { width = header, len = shown:tonumber(), shown = shown, prefix = fixed.offset }
    end

    return { name = fixed.name, max = max, bits = 8 * fixed.width, read = read }
end

-- The codec that the preferences ask for; or nil, and why there is none.
local function codec_of_preferences()
    local format, max = FORMATS[proto.prefs.format], proto.prefs.max_message_size
    if max == 0 then
        return nil, "the longest message has at least 1 byte"
    elseif format.name == "buffstreams" then
        return buffstreams_codec(max)
    elseif format.name == "varint" then
        return varint_codec(max)
    elseif format.name == "session" then
        -- The codec serves the heuristic alone, and for that a header of a session is one of u32_be.
        local codec = fixed_codec({ name = "session", width = 4, offset = 0 }, max)
        codec.session = true
        return codec
    elseif format.width then
        return fixed_codec({ name = format.name, width = format.width, offset = 0, little = format.little }, max)
    end

    local width, offset = proto.prefs.fixed_width, proto.prefs.fixed_offset
    if width < 1 or width > 8 then
        return nil, string.format("a length field of %d bytes: it has from 1 to 8", width)
    elseif offset > 8 then
        return nil, string.format("%d bytes in front of the length: there are at most 8", offset)
    end
    local little, includes_header = proto.prefs.fixed_little_endian, proto.prefs.fixed_includes_header
    local name = string.format("fixed %d bytes, %s endian%s%s", width, little and "little" or "big",
        offset > 0 and ", at offset " .. offset or "", includes_header and ", length includes the header" or "")
    return fixed_codec(
        { name = name, width = width, offset = offset, little = little, includes_header = includes_header }, max)
end

local codec, codec_problem = codec_of_preferences()

---------------------------------------------------------------------------------------------------------------------------
-- What is remembered of a connection
--
-- What a byte means depends on those before it: whether there was a handshake, whether the place was lost, which position a
-- message has. Packets are dissected in order once, and then again in any order. So what is known of a direction when a packet
-- begins is kept with the packet, and a later visit starts from there.
--
-- A direction has
--   started    a byte of it has been dissected
--   over       why nothing behind it can be read
--   session    its frames are those of a session
--   dialer     it is from the end that dialed
--   hello      what its handshake said, HELLO or WELCOME
--   position   that of its next message
--   acked      what the ACKs in it have reached: a position of the other direction
--   closed     it had its CLOSE

local connections = {}

function proto.init()
    connections = {}
end

local function copy(from)
    local to = {}
    for key, value in pairs(from) do
        to[key] = value
    end
    return to
end

-- The direction of this packet, `here`, and the other one, `there`, as they are where the dissection of the packet stands.
-- Changes to them are kept, except on a later visit, where they are copies.
--
-- A connection is known by its addresses and ports alone: Wireshark's number of the stream is a field, and the first pass over a
-- capture often has no fields.
local function flow_of(pinfo)
    local from = tostring(pinfo.src) .. " " .. pinfo.src_port
    local to = tostring(pinfo.dst) .. " " .. pinfo.dst_port
    local key = from < to and from .. " " .. to or to .. " " .. from
    local connection = connections[key]
    if not connection then
        connection = { directions = { [from] = {}, [to] = {} }, before = {} }
        connections[key] = connection
    end

    -- A packet comes in several pieces where a message ends in the middle of it. `private` lives as long as the packet is
    -- dissected, so it tells the first piece from the others.
    local mark = "buffstreams " .. key
    if pinfo.private[mark] then
        return connection.flow
    end
    pinfo.private[mark] = "begun"
    pinfo.cols.protocol = "buffstreams"
    pinfo.cols.info = ""

    local before = connection.before[pinfo.number]
    if before then
        connection.flow = { here = copy(before.here), there = copy(before.there) }
        return connection.flow
    end
    local directions = connection.directions
    connection.flow = { here = directions[from], there = directions[to] }
    connection.before[pinfo.number] = { here = copy(connection.flow.here), there = copy(connection.flow.there) }
    return connection.flow
end

-- Forgets what was before, for a new connection between the same ports.
local function start_anew(direction)
    for name in pairs(direction) do
        direction[name] = nil
    end
end

---------------------------------------------------------------------------------------------------------------------------
-- Items of the tree

-- Without a text, it says what the info always says.
local function complain(item, info, text)
    if text then
        item:add_proto_expert_info(info, text)
    else
        item:add_proto_expert_info(info)
    end
end

local function in_bytes(len)
    return len == 1 and "1 byte" or string.format("%d bytes", len)
end

-- Puts what is left under the item, which cannot be read.
local function add_undecoded(item, bytes, from)
    if bytes:len() > from then
        item:add(f.undecoded, bytes(from))
    end
end

-- The message of `len` bytes at `from`.
local function add_message(item, bytes, from, len, pinfo, root)
    -- An empty range at the end of the bytes would be out of bounds.
    if len == 0 then
        return
    end
    local message = bytes(from, len)
    item:add(f.message, message)
    if not proto.prefs.protobuf then
        return
    end
    if proto.prefs.protobuf_type ~= "" then
        pinfo.private["pb_msg_type"] = "message," .. proto.prefs.protobuf_type
    end
    local fine = pcall(Dissector.call, Dissector.get("protobuf"), message:tvb(), pinfo, root)
    if not fine then
        complain(item, e.not_protobuf)
    end
end

local function new_item(root, bytes, kind, label)
    local item = root:add(proto, bytes)
    item:append_text(", " .. (label or kind))
    item:add(f.kind, kind):set_generated()
    return item
end

-- Each `take_…` takes what is at the start of `bytes`, and gives how many bytes that was, and what the column says of it or, for
-- a message, nil and its length. Where that is not whole it gives nil, and how many more bytes are needed: `ONE_MORE_SEGMENT` as
-- long as its header is not whole. TCP puts messages together by these numbers, so they must be true: a part of what is needed
-- would have the second pass over a capture miss the message.

-- What comes behind an error, or behind the end of a session.
local function take_lost(bytes, why, root)
    local item = new_item(root, bytes, "lost", why)
    add_undecoded(item, bytes, 0)
    return bytes:len(), "not decoded"
end

-- A header that makes no sense: nothing behind it can be read.
local function take_broken(bytes, format, header, flow, root)
    local item = new_item(root, bytes, "error")
    item:add(f.format, format):set_generated()
    local shown = item:add(f.header, bytes(0, header.width))
    if header.shown then
        item:add(f.length, bytes(0, header.width), header.shown)
    end
    complain(shown, header.bad, header.text)
    add_undecoded(item, bytes, header.width)
    flow.here.over = "behind a header that makes no sense"
    return bytes:len(), "error: " .. header.text
end

---------------------------------------------------------------------------------------------------------------------------
-- Plain messages

local function take_plain(bytes, flow, pinfo, root)
    local header = codec.read(bytes)
    if not header then
        return nil, ONE_MORE_SEGMENT
    elseif header.bad then
        return take_broken(bytes, codec.name, header, flow, root)
    elseif bytes:len() < header.width + header.len then
        return nil, header.width + header.len - bytes:len()
    end
    local width, total = header.width, header.width + header.len
    local item = new_item(root, bytes(0, total), "message", "message of " .. in_bytes(header.len))
    item:add(f.format, codec.name):set_generated()
    item:add(f.header, bytes(0, width))
    local prefix, padding = header.prefix or 0, header.padding or 0
    if prefix > 0 then
        item:add(f.prefix, bytes(0, prefix))
    end
    item:add(f.length, bytes(prefix, width - prefix - padding), header.shown)
    if padding > 0 then
        item:add(f.padding, bytes(width - padding, padding))
    end
    add_message(item, bytes, width, header.len, pinfo, root)
    return total, nil, header.len
end

---------------------------------------------------------------------------------------------------------------------------
-- Sessions

-- Whether the bytes are the start of a handshake, as far as they go.
local function begins_handshake(bytes)
    local len = math.min(bytes:len(), #MAGIC)
    return bytes(0, len):raw() == MAGIC:sub(1, len)
end

local function all_zero(bytes)
    return not bytes:raw():find("[^%z]")
end

-- What is wrong with the limits and positions of a handshake by themselves.
local function check_handshake(item, hello, has_no_positions)
    if hello.max_message == 0 or hello.max_message >= 0x80000000 then
        complain(item, e.limits, "LIMITS: the longest message has from 1 to 2147483647 bytes")
    end
    if hello.heartbeat > 0 and hello.heartbeat < 100 then
        complain(item, e.limits, "LIMITS: a heartbeat of less than 100 ms")
    end
    if hello.acked > hello.sent then
        complain(item, e.position, "POSITION: acked is above sent")
    end
    if hello.taken > hello.received then
        complain(item, e.position, "POSITION: taken is above received")
    end
    -- With these two at 0 all are, or one of the above is wrong.
    if has_no_positions and (hello.sent > ZERO or hello.received > ZERO) then
        complain(item, e.position, "POSITION: not 0 where no session goes on")
    end
end

-- What is wrong with a WELCOME, held against its HELLO.
local function check_answer(item, hello, welcome)
    if welcome.id ~= hello.id or welcome.epoch ~= hello.epoch then
        complain(item, e.malformed, "MALFORMED: not the session and epoch of the HELLO")
    end
    if welcome.mode == (hello.resume and NEW or RESUMED) then
        complain(item, e.malformed, "MALFORMED: " .. (hello.resume and "NEW as the answer to RESUME" or "RESUMED without RESUME"))
    end
    if welcome.mode ~= RESUMED or not hello.resume then
        return
    end
    -- A listener accepts a `taken` of the dialer below its own `acked`, if that is not above the dialer's `received`.
    if hello.acked > welcome.taken or welcome.received > hello.sent then
        complain(item, e.position, "POSITION: not between acked and sent of the HELLO")
    end
    if welcome.acked > hello.received or hello.received > welcome.sent then
        complain(item, e.position, "POSITION: received of the HELLO is not between acked and sent")
    end
end

-- A HELLO, or the WELCOME that answers one.
local function take_handshake(bytes, flow, root)
    local here, there = flow.here, flow.there
    local is_welcome = there.dialer
    local least = is_welcome and 14 or 13
    if bytes:len() < least then
        return nil, ONE_MORE_SEGMENT
    end
    local kind = is_welcome and "WELCOME" or "HELLO"
    local version = bytes(12, 1):uint()
    local is_foreign
    if is_welcome then
        is_foreign = bytes(13, 1):uint() == STATUS_VERSION
    else
        is_foreign = version ~= VERSION
    end
    if not is_foreign and bytes:len() < HANDSHAKE then
        return nil, HANDSHAKE - bytes:len()
    end

    here.session, there.session = true, true
    here.dialer = not is_welcome
    if is_foreign then
        -- All behind these is for that other version to say.
        local item = new_item(root, bytes, kind)
        item:add(f.header, bytes(0, 12))
        local shown = item:add(f.version, bytes(12, 1))
        if is_welcome then
            item:add(f.status, bytes(13, 1))
        else
            complain(shown, e.version, string.format("VERSION: version %d, this dissector knows version %d", version, VERSION))
        end
        add_undecoded(item, bytes, least)
        here.over = "of another version of the protocol"
        there.over = is_welcome and "behind a WELCOME that refuses" or nil
        return bytes:len(), kind .. ", VERSION"
    end

    local mode = bytes(13, 1):uint()
    local hello = {
        mode = mode,
        resume = mode % 2 == 1,
        id = bytes(16, 16):raw(),
        epoch = bytes(32, 4):uint(),
        max_message = bytes(36, 4):uint(),
        heartbeat = bytes(44, 4):uint(),
        acked = bytes(56, 8):uint64(),
        sent = bytes(64, 8):uint64(),
        received = bytes(72, 8):uint64(),
        taken = bytes(80, 8):uint64(),
    }
    local what = is_welcome and (STATUS[mode] or "unknown status") or hello.resume and "RESUME" or "new"
    local item = new_item(root, bytes(0, HANDSHAKE), kind, kind .. ", " .. what)
    item:add(f.header, bytes(0, 12))
    local shown_version = item:add(f.version, bytes(12, 1))
    local shown_mode = item:add(is_welcome and f.status or f.flags, bytes(13, 1))
    item:add(f.reserved, bytes(14, 2))
    item:add(f.id, bytes(16, 16))
    item:add(f.epoch, bytes(32, 4))
    item:add(f.max_message, bytes(36, 4))
    item:add(f.window, bytes(40, 4))
    item:add(f.heartbeat, bytes(44, 4))
    item:add(is_welcome and mode == BUSY and f.retry or f.ttl, bytes(48, 4))
    item:add(is_welcome and f.incarnation or f.reserved, bytes(52, 4))
    item:add(f.acked, bytes(56, 8))
    item:add(f.sent, bytes(64, 8))
    item:add(f.received, bytes(72, 8))
    item:add(f.taken, bytes(80, 8))

    if version ~= VERSION then
        complain(shown_version, e.version, "VERSION: not the version of the HELLO")
    end
    if is_welcome and not STATUS[mode] then
        complain(shown_mode, e.malformed, "MALFORMED: unknown status")
    elseif not is_welcome and mode > 1 then
        complain(shown_mode, e.malformed, "MALFORMED: a flag other than RESUME")
    end
    if not all_zero(bytes(14, 2)) or not is_welcome and not all_zero(bytes(52, 4)) then
        complain(item, e.malformed, "MALFORMED: a reserved byte is not 0")
    end
    if not is_welcome and (all_zero(bytes(16, 16)) or hello.epoch == 0) then
        complain(item, e.malformed, "MALFORMED: an id or epoch of 0")
    end
    if is_welcome then
        check_handshake(item, hello, mode ~= RESUMED)
        if there.hello then
            check_answer(item, there.hello, hello)
        end
    else
        check_handshake(item, hello, not hello.resume)
    end

    here.hello = hello
    if not is_welcome then
        return HANDSHAKE, kind .. ", " .. what
    end
    if mode ~= NEW and mode ~= RESUMED then
        here.over, there.over = "behind a WELCOME that refuses", "behind a WELCOME that refuses"
    end
    -- Each goes on where the other is as receiver. What each has told of the other's messages is in the WELCOME.
    here.position, there.position = there.hello and there.hello.received, hello.received
    here.acked, there.acked = hello.taken, hello.acked
    return HANDSHAKE, kind .. ", " .. what
end

-- The reason why a control with these values cannot be, and what to call that; or nil.
local control_checks = {
    ACK = function(body, here, there)
        local taken = body(1, 8):uint64()
        if here.acked and taken < here.acked then
            return e.position, "POSITION: below an earlier ACK"
        elseif there.position and taken > there.position then
            return e.position, "POSITION: above what was sent on this connection"
        end
        here.acked = taken
    end,
    REFUSE = function(body, here, there)
        local first, count = body(1, 8):uint64(), body(9, 4):uint()
        if not WHY[body(13, 1):uint()] then
            return e.malformed, "MALFORMED: an unknown reason"
        elseif count == 0 then
            return e.position, "POSITION: an empty range"
        elseif here.acked and first < here.acked then
            return e.position, "POSITION: below an earlier ACK"
        elseif there.position and (first > there.position or there.position - first < UInt64(count)) then
            return e.position, "POSITION: above what was sent on this connection"
        end
    end,
    HEARTBEAT = function(body, here, there)
        if here.position and body(1, 8):uint64() ~= here.position then
            return e.position, "POSITION: not where the messages on this connection are"
        elseif there.acked and body(9, 8):uint64() > there.acked then
            return e.position, "POSITION: acked is above what was told"
        end
    end,
    CLOSE = function(body, here)
        if here.closed then
            return e.position, "POSITION: behind a CLOSE"
        end
        here.closed = true
        if here.position and body(1, 8):uint64() ~= here.position then
            return e.position, "POSITION: not where the messages on this connection are"
        end
    end,
    GOAWAY = function(body, here)
        if here.dialer then
            return e.malformed, "MALFORMED: from the dialer"
        elseif body(1, 2):uint() ~= 1 then
            return e.malformed, "MALFORMED: an unknown code"
        end
    end,
    ERROR = function(body, here)
        here.over = "behind an ERROR"
        if not ERRORS[body(1, 2):uint()] then
            return e.malformed, "MALFORMED: an unknown code"
        end
    end,
}

-- Where a control has what, behind its type: field, offset, bytes.
local CONTROL_FIELDS = {
    ACK = { { f.taken, 1, 8 } },
    REFUSE = { { f.first, 1, 8 }, { f.count, 9, 4 }, { f.why, 13, 1 } },
    HEARTBEAT = { { f.sent, 1, 8 }, { f.acked, 9, 8 } },
    CLOSE = { { f.sent, 1, 8 } },
    GOAWAY = { { f.code, 1, 2 }, { f.retry, 3, 4 } },
    ERROR = { { f.error, 1, 2 } },
}

local function is_control_length(len)
    for _, known in ipairs(CONTROL_LENGTHS) do
        if len == known then
            return true
        end
    end
    return false
end

local function take_control(bytes, len, flow, root)
    -- A length that no control has, and one that its type has not, are told without waiting for the body.
    if not is_control_length(len) then
        local header = bad(e.malformed, string.format("MALFORMED: no control has %d bytes", len), 4, UInt64(len))
        return take_broken(bytes, "session", header, flow, root)
    elseif bytes:len() < 5 then
        return nil, ONE_MORE_SEGMENT
    end
    local type = bytes(4, 1):uint()
    local name = CONTROLS[type]
    if CONTROL_LENGTHS[type] ~= len then
        local text = name and string.format("MALFORMED: %s of %d bytes", name, len)
            or string.format("MALFORMED: unknown control %d", type)
        return take_broken(bytes, "session", bad(e.malformed, text, 5, UInt64(len)), flow, root)
    elseif bytes:len() < 4 + len then
        return nil, 4 + len - bytes:len()
    end

    local item = new_item(root, bytes(0, 4 + len), name)
    item:add(f.format, "session"):set_generated()
    item:add(f.header, bytes(0, 4))
    item:add(f.length, bytes(0, 4), UInt64(len))
    item:add(f.control, bytes(4, 1))
    local body = bytes(4, len)
    for _, part in ipairs(CONTROL_FIELDS[name]) do
        item:add(part[1], body(part[2], part[3]))
    end
    local info, text = control_checks[name](body, flow.here, flow.there)
    if info then
        complain(item, info, text)
    end
    return 4 + len, name
end

local function take_session_frame(bytes, flow, pinfo, root)
    local here, there = flow.here, flow.there
    if bytes:len() < 4 then
        return nil, ONE_MORE_SEGMENT
    end
    local len = bytes(0, 4):uint()
    if len >= 0x80000000 then
        return take_control(bytes, len - 0x80000000, flow, root)
    end
    local max = there.hello and there.hello.max_message or proto.prefs.max_message_size
    if len > max then
        return take_broken(bytes, "session", too_large(UInt64(len), max, 4), flow, root)
    elseif bytes:len() < 4 + len then
        return nil, 4 + len - bytes:len()
    end

    local item = new_item(root, bytes(0, 4 + len), "message", "message of " .. in_bytes(len))
    item:add(f.format, "session"):set_generated()
    item:add(f.header, bytes(0, 4))
    item:add(f.length, bytes(0, 4), UInt64(len))
    if here.position then
        item:add(f.position, here.position):set_generated()
        here.position = here.position + UInt64(1)
    end
    if here.closed then
        complain(item, e.position, "POSITION: behind a CLOSE")
    end
    add_message(item, bytes, 4, len, pinfo, root)
    return 4 + len, nil, len
end

---------------------------------------------------------------------------------------------------------------------------
-- The dissector

-- What stands at the start of the bytes, in the place where the connection is.
local function take(bytes, flow, pinfo, root)
    local here = flow.here
    -- A second HELLO cannot come in a connection, so this is the first of another one.
    if (here.dialer or here.over) and bytes:len() >= #MAGIC and begins_handshake(bytes) then
        start_anew(here)
        start_anew(flow.there)
    end
    if here.over then
        return take_lost(bytes, here.over, root)
    elseif not here.started and begins_handshake(bytes) then
        return take_handshake(bytes, flow, root)
    elseif here.session or codec and codec.session then
        return take_session_frame(bytes, flow, pinfo, root)
    elseif not codec then
        local item = new_item(root, bytes, "error")
        complain(item, e.setting, codec_problem)
        return bytes:len(), codec_problem
    else
        return take_plain(bytes, flow, pinfo, root)
    end
end

-- What the column says: messages are counted, all else is named.
local function summary(parts, messages, total)
    if messages > 0 then
        parts[#parts + 1] = (messages == 1 and "message of " or messages .. " messages of ") .. in_bytes(total)
    end
end

local function dissect(tvb, pinfo, root)
    local flow = flow_of(pinfo)
    local parts, messages, total = {}, 0, 0
    local offset = 0
    while offset < tvb:len() do
        local bytes = tvb(offset)
        local taken, about, len = take(bytes, flow, pinfo, root)
        if not taken then
            if pinfo.can_desegment > 0 then
                pinfo.desegment_offset = offset
                pinfo.desegment_len = about
            else
                local item = new_item(root, bytes, "cut")
                complain(item, e.cut)
                add_undecoded(item, bytes, 0)
                flow.here.over = "behind a message that is not whole"
            end
            break
        end
        flow.here.started = true
        if len then
            messages, total = messages + 1, total + len
        else
            summary(parts, messages, total)
            messages, total = 0, 0
            parts[#parts + 1] = about
        end
        offset = offset + taken
    end
    summary(parts, messages, total)
    if #parts > 0 then
        pinfo.cols.info:append(table.concat(parts, ", ") .. " ")
    end
    return tvb:len()
end

proto.dissector = dissect

---------------------------------------------------------------------------------------------------------------------------
-- Connections on other ports

-- How much must speak for a format, in bits: random bytes have as much in one of 65,536 packets.
local ENOUGH = 16
-- How many of the first bytes of a handshake will do, where its packet was split.
local ENOUGH_MAGIC = 4

-- Whether the bytes are messages of the format that is set. What a header says counts when something confirms it: another
-- header where its message ends, or the end of the packet there. Empty messages say nothing: zeros are everywhere.
local function reads_well(bytes)
    local chance = math.log(codec.max + 1) / math.log(2)
    local for_it, confirmed, offset = 0, false, 0
    while offset < bytes:len() do
        local header = codec.read(bytes(offset))
        if header and header.bad then
            return false
        elseif not header then
            break
        end
        if header.len > 0 then
            confirmed = confirmed or offset > 0
            for_it = for_it + math.max(0, 8 * (header.width - (header.prefix or 0)) - chance)
        end
        offset = offset + header.width + header.len
    end
    if offset == bytes:len() then
        confirmed = true
        for_it = for_it + math.min(chance, codec.bits)
    end
    return confirmed and for_it >= ENOUGH
end

local function heuristic(tvb, pinfo, root)
    local setting = proto.prefs.heuristic
    if setting == HEURISTIC_OFF or tvb:len() == 0 then
        return false
    end
    local bytes = tvb()
    local is_session = bytes:len() >= ENOUGH_MAGIC and begins_handshake(bytes)
    if not is_session and not (setting == HEURISTIC_FRAMES and codec and reads_well(bytes)) then
        return false
    end
    pinfo.conversation = proto
    -- Not `proto.dissector`: a call of that is one of another protocol, which may not put segments together.
    dissect(tvb, pinfo, root)
    return true
end

local tcp_ports = DissectorTable.get("tcp.port")
local registered = ""

function proto.prefs_changed()
    codec, codec_problem = codec_of_preferences()
    if registered ~= proto.prefs.ports then
        if registered ~= "" then
            tcp_ports:remove(registered, proto)
        end
        registered = proto.prefs.ports
        if registered ~= "" then
            tcp_ports:add(registered, proto)
        end
    end
end

proto:register_heuristic("tcp", heuristic)
tcp_ports:add_for_decode_as(proto)
