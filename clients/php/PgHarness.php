<?php

declare(strict_types=1);

/**
 * The databases of a living `pg-harness run`: which one is this process's own, and how it becomes pristine again.
 *
 * One file, PHP's own functions only (PHP 8.0 or later). Written by `pg-harness init php`; it is yours: change what you like.
 */
final class PgHarness
{
    private const COMMAND = 'pg-harness run -n 4 -- vendor/bin/paratest -p 4';
    /** Seconds to wait for a database while others have all of them; PGHARNESS_LEASE_WAIT says another number. */
    private const WAIT = '300';
    /** Seconds for any other answer: a reset may be a fresh clone on a busy machine. */
    private const PATIENCE = 120;

    private static ?int $own = null;

    /**
     * This process takes its database, pristine; all variables of the run become that one's (DATABASE_URL, PGHOST … and those of
     * [tool.pg-harness.env]), in getenv(), $_ENV and $_SERVER. By its number, where ParaTest says it (TEST_TOKEN), else whichever is free.
     * In the bootstrap file of the tests, before the application reads its settings.
     */
    public static function use(?string $worker = null): int
    {
        self::variable('PGHARNESS_CONTROL_URL');
        $id = self::number($worker ?? (getenv('TEST_TOKEN') === false ? null : (string) getenv('TEST_TOKEN')));
        if ($id === null) {
            $given = self::lease();
        } else {
            self::call('POST', "/v1/reset/$id?to=template");
            $given = self::call('GET', "/v1/env/$id");
        }
        foreach ($given['env'] as $name => $value) {
            putenv("$name=$value");
            $_ENV[$name] = $_SERVER[$name] = $value;
        }
        return self::$own = $given['id'];
    }

    /** Back to the last mark, else to what the migrations made; $to: a mark, or 'template', which forgets all marks. */
    public static function reset(?string $to = null): array
    {
        return self::call('POST', '/v1/reset/' . self::own() . ($to === null ? '' : '?to=' . rawurlencode($to)));
    }

    /** The present state is what reset comes back to; marks stack. */
    public static function mark(): string
    {
        return self::call('POST', '/v1/mark/' . self::own())['mark'];
    }

    /** Forget a mark, and those above it. The rows stay until the next reset. */
    public static function unmark(string $mark): void
    {
        self::call('DELETE', '/v1/mark/' . self::own() . '/' . rawurlencode($mark));
    }

    /** Give it back. Who ends, or is killed, gives a leased one back by being gone. */
    public static function release(): void
    {
        self::call('POST', '/v1/release/' . self::own());
        self::$own = null;
    }

    private static function number(?string $worker): ?int
    {
        $copies = (string) getenv('PGHARNESS_COPIES') !== '';
        $count = $copies ? 1 : (int) (getenv('PGHARNESS_WORKERS') ?: 1);
        if ($worker !== null && (!preg_match('/\A[0-9]{1,9}\z/', $worker) || (int) $worker < 1 || (int) $worker > $count)) {
            throw new RuntimeException("worker '$worker' (TEST_TOKEN) has no database: " . ($copies ? 'a copy of `run --copies`' : 'this run')
                . " has $count, numbered from 1. Give it as many as there are processes (`pg-harness run -n N`), or start fewer (-p)");
        }
        if ($copies) {
            return (int) getenv('PGHARNESS_LEASE');
        }
        return $worker === null ? null : (int) $worker;
    }

    private static function lease(): array
    {
        $wait = (string) getenv('PGHARNESS_LEASE_WAIT') === '' ? self::WAIT : (string) getenv('PGHARNESS_LEASE_WAIT');
        if (!preg_match('/\A[0-9]{1,4}\z/', $wait) || (int) $wait > 3600) {
            throw new RuntimeException("PGHARNESS_LEASE_WAIT is a number of seconds up to 3600, not '$wait'");
        }
        return self::call('POST', '/v1/lease', ['pid' => getmypid(), 'wait' => (int) $wait], (int) $wait + self::PATIENCE);
    }

    private static function own(): int
    {
        self::variable('PGHARNESS_CONTROL_URL');
        return self::$own ?? throw new RuntimeException('this process has no database yet: call PgHarness::use() first');
    }

    private static function variable(string $name): string
    {
        $value = (string) getenv($name);
        if ($value === '') {
            throw new RuntimeException('these tests have no database: they were started outside of pg-harness. Run `' . self::COMMAND . '`');
        }
        return $value;
    }

    private static function call(string $method, string $path, ?array $body = null, int $patience = self::PATIENCE): array
    {
        $text = $body === null ? '' : json_encode($body, JSON_THROW_ON_ERROR);
        $head = "$method $path HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " . self::variable('PGHARNESS_CONTROL_TOKEN')
            . "\r\nContent-Type: application/json\r\nContent-Length: " . strlen($text) . "\r\nConnection: close\r\n\r\n";
        [$said, $content] = explode("\r\n\r\n", self::sent($head . $text, $patience), 2) + ['', ''];
        $status = (int) (explode(' ', $said)[1] ?? 0);
        $answer = json_decode($content, true);
        $answer = is_array($answer) ? $answer : [];
        if ($status >= 200 && $status < 300) {
            return $answer;
        }
        // It names who has the databases, where none is free.
        $detail = $answer['detail'] ?? $answer['title'] ?? substr($said . $content, 0, 300);
        throw new RuntimeException("pg-harness: $detail ($method $path: $status)");
    }

    private static function sent(string $request, int $patience): string
    {
        $url = self::variable('PGHARNESS_CONTROL_URL');
        $address = str_starts_with($url, 'unix://')
            ? 'unix://' . rawurldecode(substr($url, strlen('unix://')))
            : 'tcp://' . rtrim(substr($url, str_starts_with($url, 'http://') ? strlen('http://') : 0), '/');
        $why = '';
        $stream = @stream_socket_client($address, $code, $why, 10);
        $raw = '';
        if ($stream !== false) {
            stream_set_timeout($stream, $patience);
            fwrite($stream, $request);
            $raw = (string) stream_get_contents($stream);
            $why = stream_get_meta_data($stream)['timed_out'] ? "no answer in $patience seconds" : 'the connection was closed without an answer';
            fclose($stream);
        }
        if (!str_contains($raw, "\r\n\r\n")) {
            throw new RuntimeException("nobody answers at $url (PGHARNESS_CONTROL_URL): $why. The run " . getenv('PGHARNESS_RUN')
                . ' is over or was killed; its databases are gone, and no others are taken in their stead. Run `' . self::COMMAND . '`');
        }
        return $raw;
    }
}
