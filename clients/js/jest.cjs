const { setUp } = require('./edges/jest.cjs');

setUp('test');
