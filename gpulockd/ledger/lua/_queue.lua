-- The queue of a pool. `queue` holds all tickets for places and printing; `queue:<wants>` the present ones of equal
-- wants; `heads:<gpu>` and `heads:any` the score of each of those queues' heads. As equal wants never overtake, only
-- heads are ever tried, so a hand-off costs the same at any length of the queue.
--
-- Score = arrival stamp - priority * priority_step: a ticket ages by standing still. Lower goes first.

queue = room(function(queue)
  function queue.heads_of(w)
    if not w.keys then return {names.base .. 'heads:any'} end
    local keys = {}
    for i, key in ipairs(w.keys) do keys[i] = names.base .. 'heads:' .. key end
    return keys
  end

  -- The head of a queue of equal wants and its score; behind them the next one's.
  function queue.head(words)
    local first = redis.call('ZRANGE', names.base .. 'queue:' .. words, 0, 1, 'WITHSCORES')
    return first[1], tonumber(first[2]), first[3], tonumber(first[4])
  end

  -- Says in the heads which one is head now, and returns it.
  local function set_head(w, id, score)
    for _, key in ipairs(queue.heads_of(w)) do
      if id then redis.call('ZADD', key, score, w.text) else redis.call('ZREM', key, w.text) end
    end
    return id, score
  end

  local function refresh_head(w)
    local id, score = queue.head(w.text)
    return set_head(w, id, score)
  end

  -- A ticket before another: lower score, then lower id.
  function queue.before(score, id, other_score, other_id)
    return score < other_score or (score == other_score and id < other_id)
  end

  function queue.enter(id, w, score)
    redis.call('ZADD', names.queue, score, id)
    redis.call('ZADD', names.base .. 'queue:' .. w.text, score, id)
    refresh_head(w)
  end

  -- Does a waiting ticket stand wherever placing looks for it? Not if somebody has deleted a key by hand.
  function queue.has(t)
    local w = gpus.wants(t.wants)
    return redis.call('ZSCORE', names.queue, t.id) and redis.call('ZSCORE', names.base .. 'queue:' .. w.text, t.id)
      and redis.call('ZSCORE', queue.heads_of(w)[1], w.text)
  end

  -- Takes a ticket out of the queue; what it had chosen is free for others. Returns the next head of equal wants.
  function queue.leave(id, w)
    holding_back.drop(id)
    redis.call('ZREM', names.queue, id)
    redis.call('ZREM', names.base .. 'queue:' .. w.text, id)
    return refresh_head(w)
  end

  -- The same for a head whose next one is known.
  function queue.leave_head(id, w, next_id, next_score)
    holding_back.drop(id)
    redis.call('ZREM', names.queue, id)
    redis.call('ZREM', names.base .. 'queue:' .. w.text, id)
    return set_head(w, next_id, next_score)
  end

  -- A ticket whose process did not answer keeps its score and its place, but holds nothing back and is no head.
  -- Only a request by its own waiting loop brings it back.
  function queue.send_away(t, w)
    holding_back.drop(t.id)
    redis.call('ZREM', names.base .. 'queue:' .. w.text, t.id)
    t.state = 'away'
    tickets.write(t)
    return refresh_head(w)
  end
end)
