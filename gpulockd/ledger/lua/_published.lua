-- What a pool publishes for its clients: one JSON text, opaque here, and a version that grows with each change. The
-- version stands among the terms, so every answer tells it, and a client that has missed the message knows.

published = room(function(published)
  function published.version()
    return tonumber(meta.version or '0')
  end

  -- The text first: a cut in between leaves it under the version before, and whoever published does so again.
  function published.put(defaults, version)
    redis.call('HSET', names.offer, 'defaults', defaults)
    books.note_term('version', text(version))
    redis.call(meta.cluster == '1' and 'SPUBLISH' or 'PUBLISH', names.base .. 'config',
      'defaults ' .. text(version) .. ' ' .. defaults)
  end

  -- What comes with an offer. A daemon that knows an earlier version than the pool has is not heard in this; one that
  -- knows a later one has it from before the store lost its data; one that has just begun knows none ('').
  function published.offer(defaults, known)
    local version, differ = published.version(), redis.call('HGET', names.offer, 'defaults') ~= defaults
    if known ~= '' and tonumber(known) < version then return end
    local next_version = math.max(differ and version + 1 or version, tonumber(known ~= '' and known or 0))
    if differ or next_version > version then published.put(defaults, next_version) end
  end
end)
