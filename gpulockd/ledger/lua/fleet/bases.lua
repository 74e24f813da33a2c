-- bases: what file and environment of a pool's daemon said, each from its revision on.
--
-- KEYS     the fleet's, and KEYS[7] the bases of the pool    ARGV[1] '' (no session)
-- returns  {'bases', TIME (ms), {number, base (JSON), ...}}
return fleet.answer('bases', redis.call('HGETALL', names.bases))
