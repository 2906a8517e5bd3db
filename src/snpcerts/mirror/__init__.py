# SPDX-License-Identifier: Apache-2.0
"""A mirror of AMD's key server for a fleet of hosts.

It asks AMD for each certificate once, at AMD's pace, keeps what verifies in a database, and gives
it to hosts, guests and verifiers by AMD's own URLs. It needs the packages of the extra ``mirror``.

The database: ``database`` opens it, ``migrations`` creates its tables, ``tables`` names them for
queries. ``stored`` has the certificates, ``prompt_reader`` reads them from SQLite for requests, and
``admission`` decides what may be stored. ``wanted`` is the queue and the pace of all instances,
``fetcher`` works on it, ``waiting`` wakes those who wait for a certificate, ``upkeep`` queues and
removes what is old.

HTTP: ``serving`` runs one instance. ``connection`` bounds the time of a request and of its answer
and a request's size, and reads a client's certificate. ``service`` answers AMD's URLs, read by
``target``, with ``body_cache`` for recent answers; ``api`` answers all other URLs.
``mirror_client`` is the client of that API, ``mirror_metrics`` the metrics.

The fleet: agents send an ``announcement``; ``fleet_records`` stores it, ``fleet_view`` sums up what
is known of all hosts. ``fleet_page`` and ``host_page`` show it, in the frame of ``page``, with
``charts``, as ``markup``. ``archive`` carries certificates to networks without a way to AMD.
Imports ``kds``, ``verify``, ``endorsement`` and ``abi``.
"""
